"""What happens inside the child process that cuts a model. Only it loads the packages of ``meshnode[split]``."""
