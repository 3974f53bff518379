"""``python -m meshnode.models.cutting.inside PARENT``: the child process that cuts a model.

``PARENT`` is the id of the process that started it. The order comes on standard input.
"""

import sys

from meshnode.models.cutting.inside.carrying_out import carry_out

if __name__ == "__main__":
    carry_out(int(sys.argv[1]))
