"""Papermill's own engine on one kernel for all notebooks: it starts, and imports torch and diffusers, once."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jupyter_client import AsyncKernelManager, BlockingKernelClient
from jupyter_client.utils import run_sync
from papermill.engines import NBClientEngine, papermill_engines

RESET = """
import os
os.environ.clear()
os.environ.update({environment!r})
os.chdir({folder!r})
get_ipython().reset(new_session=True)
__import__("gc").freeze()  # what modules hold is no garbage: the next reset, which collects some, is done at once
__import__("gc").set_threshold(100_000, 50, 50)
"""


class OneKernel(NBClientEngine):
    """Each notebook finds the kernel as if it were new, but for the modules that are imported already."""

    manager: AsyncKernelManager | None = None

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
        if cls.manager is None:
            cls.manager = AsyncKernelManager(kernel_name=kernel_name)
            run_sync(cls.manager.start_kernel)()
        client = BlockingKernelClient()
        client.load_connection_info(cls.manager.get_connection_info())
        client.start_channels(hb=False)
        try:
            client.wait_for_ready(timeout=120)
            reset = RESET.format(environment=dict(os.environ), folder=os.getcwd())
            reply = client.execute(reset, silent=True, reply=True, timeout=120)
            assert reply["content"]["status"] == "ok", reply["content"]
        finally:
            client.stop_channels()
        return super().execute_managed_notebook(nb_man, kernel_name, km=cls.manager, **options)


@contextmanager
def one_kernel() -> Iterator[None]:
    """Within it, everything that papermill executes in this process runs in one kernel."""
    own = papermill_engines.get_engine(None)
    papermill_engines.register(None, OneKernel)
    try:
        yield
    finally:
        papermill_engines.register(None, own)
        if OneKernel.manager is not None:
            run_sync(OneKernel.manager.shutdown_kernel)(now=True)
            OneKernel.manager = None
