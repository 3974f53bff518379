"""Split inference on this node: models that are cut, and stages that are run for neighbours."""
