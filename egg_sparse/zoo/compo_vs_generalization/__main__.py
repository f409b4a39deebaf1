import sys

from egg_sparse.zoo.cli import run


def main(params: list[str]) -> None:
    # imported here, so that what goes wrong with the host is told in a sentence as well
    from egg_sparse.zoo.compo_vs_generalization import train

    train.main(params)


sys.exit(run("egg_sparse.zoo.compo_vs_generalization", main))
