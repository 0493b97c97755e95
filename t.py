import sys; sys.path[:0]=['tests/device','tests','tools/models']
import torch, tiny, spqfmt, pathlib, tempfile
from spqfmt import loaders
from device_support import loaded_onto_device
d=pathlib.Path(tempfile.mkdtemp())
tiny.build("llama", d, dtype=torch.bfloat16); spqfmt.pack(d, d/"m.spq", method="rtn")
_, tok = spqfmt.load_model(d/"m.spq")
m, dev = loaded_onto_device(d/"m.spq", None, None)
import spqfmt.loaders.device.graphs as g
o=g._form
def f(i):
    r=o(i); print(r is not None, {k:(type(v).__name__, getattr(v,'shape',v)) for k,v in i.items()}); return r
g._form=f
r=loaders.generate(m,tok,"some text",max_new_tokens=7,chat=False,graphs=True); print(r)
