"""Models in processes of their own, so that a bad one hurts neither the node nor the other models.

Each model has one worker process. The node's side is :class:`Workers`, whose :meth:`Workers.load` gives a model that is
used as any other; the process runs ``python -m meshnode.models.worker``. See ``docs/explanation/model-workers.md``.
"""

from meshnode.models.worker.keeper import Patience, WorkerModel
from meshnode.models.worker.workers import Workers

__all__ = ["Patience", "WorkerModel", "Workers"]
