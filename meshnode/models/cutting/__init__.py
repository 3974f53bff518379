"""Where a model can be cut, the stages that it is cut into, and how long each part takes.

A *cut* is a place in the order of the nodes of a model where a few tensors carry everything that later nodes need. A
*stage* is the part between two cuts, a model of its own. See ``docs/adr/0029-cuts-and-stages.md``.

Cutting needs the packages of the extra ``meshnode[split]``, in a child process only. Importing this package loads
neither them nor NumPy and ONNX Runtime.
"""

from meshnode.models.cutting.child import NEEDS, can_cut
from meshnode.models.cutting.description import Cut, CutDescription, CutTensor, StageFile
from meshnode.models.cutting.stages import StageFolder

__all__ = ["NEEDS", "Cut", "CutDescription", "CutTensor", "StageFile", "StageFolder", "can_cut"]
