"""Updates over the air: what the publishing side and the device agree on.

`publishing/` makes a repository of The Update Framework out of prompts and bundles,
plain static files that any web server can serve; `device/` follows one. Both need the
extra `ota`. The names of targets (names.py), what is signed about each (offer.py) and
what a device's store must be able to do (receiver.py) need nothing but Python.
"""
