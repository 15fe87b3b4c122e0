"""Runs the programs: `python -m keras_mhgd <program>`."""

if __name__ == "__main__":
    try:
        from keras_mhgd.training import commands
    except ModuleNotFoundError as error:
        if error.name != "keras_mhgd.training":
            raise
        raise ModuleNotFoundError(
            "The programs must be installed to be run by this name. Received: "
            f"{error}. Run `pip install -e .` in the checkout, or run "
            "`python -m training.<program>` there."
        ) from error
    commands.main()
