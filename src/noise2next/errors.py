"""The errors that a person can mend."""


class UserError(Exception):
    """One sentence: what is wrong, where, and the remedy. The command line prints it and exits with code 2."""


class Diverged(UserError):
    """A model whose numbers have run away under its settings; others may do."""
