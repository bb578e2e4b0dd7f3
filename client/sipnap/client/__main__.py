"""`python -m sipnap.client` is the command `sipnap`."""

import sys

from sipnap.client.cli import main

if __name__ == "__main__":
    sys.exit(main())
