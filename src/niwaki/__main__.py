"""`python -m niwaki`: the same as the `niwaki` command."""

from __future__ import annotations

import sys

from niwaki.cli import main

if __name__ == "__main__":
    sys.exit(main())
