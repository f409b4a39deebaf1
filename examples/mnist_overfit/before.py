"""Classification of digits, some of whose labels are random."""

import argparse
import sys

from torch.distributions import Distribution

from egg_sparse.host import core
from examples.mnist_overfit import agents


def main(params: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    agents.add_options(parser)
    opts = core.init(parser, [*agents.SETTINGS, *params])
    Distribution.set_default_validate_args(False)  # else torch refuses probabilities whose sum is rounded

    train, validation = agents.build_data(opts)
    sender, receiver = agents.build_agents(opts)
    sender = core.GumbelSoftmaxWrapper(sender, temperature=opts.temperature)
    without_images = core.LoggingStrategy(store_sender_input=False)
    game = core.SymbolGameGS(sender, receiver, agents.loss, without_images, without_images)

    trainer = core.Trainer(
        game,
        core.build_optimizer(game.parameters()),
        train_data=train,
        validation_data=validation,
        callbacks=[
            core.ConsoleLogger(print_train_loss=True, as_json=True),
            core.EarlyStopperAccuracy(opts.early_stopping_thr),
        ],
    )
    trainer.train(n_epochs=opts.n_epochs)
    core.close()


if __name__ == "__main__":
    main(sys.argv[1:])
