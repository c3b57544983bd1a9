"""`python -m ftrain`, which torchrun needs: `torchrun --nproc-per-node 8 -m ftrain fit ...`."""

from ftrain_cli import main  # type: ignore[import-untyped]

if __name__ == "__main__":
    main()
