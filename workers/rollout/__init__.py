"""Roll policies and experts out in worlds: one episode, many episodes, and the actors that run them."""
