"""``python -m meshnode.models.worker SOCKET PARENT``: the process that starts those of models. A node starts it, nobody
else does. With ``alone`` before its arguments it is the process of one model.

``SOCKET`` is the descriptor of its orders, ``PARENT`` the process id of whoever started it.
"""

import sys

from meshnode.models.worker import forking, inside

if __name__ == "__main__":
    if sys.argv[1] == forking.ALONE:
        inside.serve(int(sys.argv[2]), int(sys.argv[3]))
    else:
        forking.serve(int(sys.argv[1]), int(sys.argv[2]))
