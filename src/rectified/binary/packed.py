def pack(model): raise NotImplementedError
def save_packed(p, path): raise NotImplementedError
def load_packed(path): raise NotImplementedError
