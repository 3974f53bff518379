"""``python -m meshnode.cli``, for hosts where the console script is not on the path."""

from meshnode.cli.main import main

if __name__ == "__main__":
    main()
