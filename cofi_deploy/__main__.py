"""`python -m cofi_deploy` is the command line."""

from cofi_deploy.cli import main

if __name__ == "__main__":
    main()
