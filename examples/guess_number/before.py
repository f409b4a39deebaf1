"""Two agents who know some of a number's bits each."""

import argparse
import sys

from torch.distributions import Distribution

from egg_sparse.host import core
from examples.guess_number import agents


def main(params: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    agents.add_options(parser)
    opts = core.init(parser, agents.settings(params))
    Distribution.set_default_validate_args(False)  # else torch refuses probabilities whose sum is rounded

    train, validation = agents.build_data(opts)
    sender, receiver = agents.build_agents(opts)
    if opts.mode == "gs":
        sender = core.GumbelSoftmaxWrapper(sender, temperature=opts.temperature)
        game = core.SymbolGameGS(sender, receiver, agents.differentiable_loss)
    elif opts.mode == "rf":
        sender = core.ReinforceWrapper(sender)
        receiver = core.ReinforceDeterministicWrapper(receiver)
        game = core.SymbolGameReinforce(sender, receiver, agents.differentiable_loss, opts.sender_entropy_coeff)
    else:
        sender = core.ReinforceWrapper(sender)
        coefficients = opts.sender_entropy_coeff, opts.receiver_entropy_coeff
        game = core.SymbolGameReinforce(sender, receiver, agents.success_loss, *coefficients)

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
