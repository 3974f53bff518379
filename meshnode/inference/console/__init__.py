"""What ``meshnode infer`` is made of: its inputs from files, its requests to a node, and what it reports."""
