"""``python -m meshnode.models.worker CONTROL PARENT``: the process of one model. A node starts it, nobody else does.

``CONTROL`` is the descriptor of its control socket, ``PARENT`` the process id of the node.
"""

import sys

from meshnode.models.worker.inside import serve

if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
