import sys

from egg_sparse.zoo.options import run
from egg_sparse.zoo.signal_game.train import PROG, main

sys.exit(run(PROG, main))
