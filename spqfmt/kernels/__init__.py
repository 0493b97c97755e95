"""The hot loops: native C++ with run-time dispatch, and a slow torch twin that checks it."""
