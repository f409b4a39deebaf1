import sys

from egg_sparse.sweep.command import main
from egg_sparse.zoo.cli import run

sys.exit(run("egg_sparse.sweep", main))
