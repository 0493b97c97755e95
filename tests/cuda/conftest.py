import pytest
from emulated import EmulatedDriver, compiler


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> EmulatedDriver:
    """The emulator, compiled once."""
    if compiler() is None:
        pytest.skip("no compiler of C++")
    return EmulatedDriver(tmp_path_factory.mktemp("emulated"))
