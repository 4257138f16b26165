"""The one exception a user's mistake raises."""


class UserError(ValueError):
    """A wrong input or setting.

    The message is one line that names the file or option and says what to do; the command line prints it as `error:
    ...` and exits with 2, without a traceback.
    """
