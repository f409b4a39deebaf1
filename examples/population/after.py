"""Several senders and receivers, a random pair of which plays each batch."""

import argparse
import sys

from egg_sparse import marginalize
from egg_sparse.host import core
from examples.population import agents
from examples.population.communication import CommunicationGS


def main(params: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    agents.add_options(parser)
    opts = core.init(parser, [*agents.SETTINGS, *params])

    train, validation = agents.build_data(opts)
    senders, receivers = agents.build_agents(opts)
    senders = [core.GumbelSoftmaxWrapper(sender, temperature=opts.gs_temperature) for sender in senders]
    without_images = core.LoggingStrategy(store_sender_input=False, store_receiver_input=False)
    communication = CommunicationGS(without_images, without_images)
    game = core.PopulationGame(communication, core.UniformAgentSampler(senders, receivers, [agents.loss]))
    game = marginalize(game)

    trainer = core.Trainer(
        game,
        core.build_optimizer(game.parameters()),
        train_data=train,
        validation_data=validation,
        callbacks=[core.ConsoleLogger(print_train_loss=True, as_json=True)],
    )
    trainer.train(n_epochs=opts.n_epochs)
    core.close()


if __name__ == "__main__":
    main(sys.argv[1:])
