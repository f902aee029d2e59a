"""Names of a graph's inputs and outputs, and its operator set.

Those of its state are in promptdial.runtime.graph_state.
"""

OPSET = 23  # the first with Attention, Gelu and LayerNormalization as single nodes
HIDDEN_NAME = "last_hidden_state"
LOGITS_NAME = "logits"
KEEP_NAME = "logits_to_keep"
VISIBLE_NAME = "visible_keys"
