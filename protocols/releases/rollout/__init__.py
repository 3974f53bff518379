"""Which release a node serves: orders, what canaries say of them, and what follows."""
