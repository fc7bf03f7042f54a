"""Other people's networks: what every package that reads or rewrites them has to know of PyTorch.

copies      independent networks of plain weights, whose layers are all called
weights     weights by name, the masked ones set to zero
traces      the operations of a network, from `torch.fx`
shapes      the same with the shape of every tensor
sites       calls of activation functions, and the layers around them
bit_layers  layers whose weights are signs
"""
