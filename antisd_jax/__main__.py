"""python -m antisd_jax = antisd."""

import sys

from antisd_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
