"""What every command-line script here shares: YAML + flags → dataclasses, and errors that a user can act on."""


class UserError(ValueError):
    """A mistake in the user's input. Its message says what was found, what is allowed and how to mend it.

    Scripts print the message alone; any other exception is a bug and keeps its traceback.
    """
