"""The experiment as a page of PyTorch: slow, and obviously right.

Autograd takes the gradients, so nothing here was derived by hand. The kernels are tested against
it, to rounding.
"""

import math

import numpy as np
import torch
from jaxtyping import Float64

from fractal_core.kernels.contract import Problem

ACTIVATIONS = {
    "tanh": lambda z: torch.tanh(math.sqrt(2) * z),
    "relu": lambda z: math.sqrt(2) * torch.relu(z),
    "identity": lambda z: z,
}


def losses(
    problem: Problem, hyper: Float64[np.ndarray, "points 4"]
) -> Float64[np.ndarray, "points steps"]:
    """The loss of every point before every step, by plain gradient descent.

    Args:
        problem: Weights, data and settings shared by all points.
        hyper: Learning rate of the input layer and of the output layer, initial offset and
            per-step drift of the input weights, for every point.
    """
    dtype = getattr(torch, problem.dtype)
    inputs, targets = (
        torch.tensor(array, dtype=dtype) for array in (problem.inputs, problem.targets)
    )
    root = math.sqrt(len(problem.w2))
    activate = ACTIVATIONS[problem.activation]

    def loss_over(w1, w2, x, y):
        hidden = activate(x @ w1 / root)
        return torch.mean((hidden @ w2 / root / root - y) ** 2)

    def train(lr_input, lr_output, offset, drift):
        w1 = torch.tensor(problem.w1, dtype=dtype) + offset
        w2 = torch.tensor(problem.w2, dtype=dtype)
        for step in range(problem.steps):
            w1 = (w1 + drift).detach().requires_grad_()
            w2 = w2.detach().requires_grad_()
            yield loss_over(w1, w2, inputs, targets).item()
            rows = slice(None) if problem.batch_index is None else problem.batch_index[step]
            batch_loss = loss_over(w1, w2, inputs[rows], targets[rows])
            slope1, slope2 = torch.autograd.grad(batch_loss, (w1, w2))
            w1, w2 = w1 - lr_input * slope1, w2 - lr_output * slope2

    return np.array([list(train(*point)) for point in hyper.tolist()])
