"""``python -m edgebench``: the same as the ``edgebench`` command."""

from __future__ import annotations

from edgebench.cli import main

if __name__ == "__main__":
    main()
