"""Records as files for programs that analyse them."""
