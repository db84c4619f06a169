"""The program of the poster "Import Hoisting for Serverless Libraries"; only its first import differs.

Run it, and in a second terminal give it workers:

    python examples/poster.py --port 9123
    windlass factory run local --port 9123
"""
# pyright: basic
# The program is kept word for word, so it has no types.

import argparse

import windlass as vine
import numpy as np


def mul_matrix(matrix):
    import numpy
    return numpy.dot(matrix, matrix)


parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=9123)
args = parser.parse_args()

q = vine.Manager(port=args.port)
libtask = q.create_library('lib', mul_matrix, imports=[np])
q.install_library(libtask)
task = vine.FunctionCall('lib', 'mul_matrix', np.random.rand(100, 100))
q.submit(task)
while not q.empty():
    done = q.wait(5)
    if done: print(done.output)
