"""An autoencoder of one-hot vectors whose code is one symbol."""

import argparse
import sys

from egg_sparse.host import core
from examples.simple_autoenc import agents


def main(params: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    agents.add_options(parser)
    opts = core.init(parser, [*agents.SETTINGS, *params])

    train, validation = agents.build_data(opts)
    sender, receiver = agents.build_agents(opts)
    callbacks = [core.ConsoleLogger(print_train_loss=True, as_json=True)]
    if opts.mode == "gs":
        sender = core.GumbelSoftmaxWrapper(sender, temperature=opts.temperature)
        game = core.SymbolGameGS(sender, receiver, agents.loss)
        callbacks.append(core.TemperatureUpdater(sender, decay=0.9, minimum=0.1))
    else:
        sender = core.ReinforceWrapper(sender)
        receiver = core.ReinforceDeterministicWrapper(receiver)
        game = core.SymbolGameReinforce(sender, receiver, agents.loss, opts.sender_entropy_coeff)

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
