"""Telling a target image from distractors."""

import argparse
import sys

from egg_sparse.host import core
from examples.signal_game import agents


def main(params: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    agents.add_options(parser)
    opts = core.init(parser, [*agents.SETTINGS, *params])

    train, validation = agents.build_data(opts)
    sender, receiver = agents.build_agents(opts)
    callbacks = [core.ConsoleLogger(print_train_loss=True, as_json=True)]
    if opts.mode == "gs":
        sender = core.GumbelSoftmaxWrapper(sender, temperature=opts.gs_tau)
        game = core.SymbolGameGS(sender, receiver, agents.differentiable_loss)
        callbacks.append(core.TemperatureUpdater(sender, decay=0.9, minimum=0.1))
    else:
        sender, receiver = core.ReinforceWrapper(sender), core.ReinforceWrapper(receiver)
        game = core.SymbolGameReinforce(sender, receiver, agents.success_loss, 0.01, 0.01)

    trainer = core.Trainer(
        game,
        core.build_optimizer(game.parameters()),
        train_data=train,
        validation_data=validation,
        callbacks=callbacks,
    )
    trainer.train(n_epochs=opts.n_epochs)
    core.close()


if __name__ == "__main__":
    main(sys.argv[1:])
