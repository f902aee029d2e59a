"""`python -m promptdial.runtime`: the same as the promptdial command."""

import sys

from promptdial.runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
