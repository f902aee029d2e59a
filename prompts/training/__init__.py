"""Training of prompts in PyTorch: needs the extra `train`.

from promptdial.prompts.training.base import open_base
from promptdial.prompts.training.trainer import train
"""
