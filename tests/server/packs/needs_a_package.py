import torch_of_the_future  # noqa: F401
