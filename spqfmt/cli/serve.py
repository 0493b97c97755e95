"""`spqfmt serve`: a model behind OpenAI's API."""

import socket
from pathlib import Path
from types import FrameType

import click

from spqfmt.cli.parameters import MODEL
from spqfmt.cli.talking import Loading, load, loading_options
from spqfmt.errors import OptionError

_GRACE_SECONDS = 2


@click.command("serve")
@click.argument("file", type=MODEL)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 for any.")
@click.option(
    "--api-key",
    envvar="SPQFMT_API_KEY",
    help="Answer only those who give this key. [default: SPQFMT_API_KEY, if it is set]",
)
@click.option("--name", help="Name of the model for clients. [default: the file's, without .spq]")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    help="The longest answer, whatever is asked for.",
)
@click.option(
    "--max-prompt",
    type=click.IntRange(min=1),
    default=16384,
    show_default=True,
    help="Tokens that a prompt may have, with its answer no more than the model takes.",
)
@click.option(
    "--max-waiting",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Requests that may wait; more are refused.",
)
@click.option(
    "--at-once",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    help="Answers that are made at once; each has keys and values of its own in memory, beside the weights.",
)
@loading_options
@click.option("--quiet", is_flag=True, help="No progress and no facts.")
def serve(
    *,
    file: Path,
    host: str,
    port: int,
    api_key: str | None,
    name: str | None,
    max_new_tokens: int,
    max_prompt: int,
    max_waiting: int,
    at_once: int,
    loading: Loading,
    quiet: bool,
) -> None:
    """Serve FILE to programs that talk to OpenAI's API: /v1/chat/completions, /v1/completions and /v1/models.

    Several requests are answered at once; more wait in a queue in which clients take turns. Those of clients that have
    gone are dropped. Only this machine reaches it unless --host says otherwise. Needs the extra spqfmt[serve].

    \b
    spqfmt serve model.spq --memory 2GiB
    spqfmt serve model.spq --host 0.0.0.0 --port 8000 --api-key SECRET
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise OptionError(
            "serving needs the packages starlette and uvicorn: pip install 'spqfmt[serve]'"
        ) from error
    if api_key is not None and not api_key.strip():
        raise OptionError("an empty API key; leave --api-key out")
    # Before minutes of loading: the port may be taken.
    with _listen(host, port) as listener:
        loaded = load(file, loading, quiet=quiet)

        from spqfmt.serving.app import is_loopback, make_app
        from spqfmt.serving.connections import TimedConnection
        from spqfmt.serving.worker import Worker

        name = name or file.name.removesuffix(".index.json").removesuffix(".spq")
        worker = Worker(
            loaded.model,
            loaded.tokenizer,
            most_waiting=max_waiting,
            most_at_once=at_once,
            most_prompt=max_prompt,
        )
        app = make_app(worker, name, most_tokens=max_new_tokens, api_key=api_key, host=host)

        class Server(uvicorn.Server):
            def handle_exit(self, sig: int, frame: FrameType | None) -> None:
                # Whoever waits gets an answer; uvicorn alone would cut connections off after the time of grace.
                worker.stop()
                super().handle_exit(sig, frame)

        server = Server(
            uvicorn.Config(
                app,
                http=TimedConnection,
                log_level="warning",
                timeout_graceful_shutdown=_GRACE_SECONDS,
                lifespan="on",
            )
        )
        if not is_loopback(host) and api_key is None:
            click.echo("anyone who reaches this machine can ask; --api-key wants a key", err=True)
        if not quiet:
            shown = f"[{host}]" if ":" in host else host
            address = f"http://{shown}:{listener.getsockname()[1]}/v1"
            click.echo(
                f"serving {name} at {address} (loaded in {loaded.seconds:.1f} s); Ctrl-C ends it", err=True
            )
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            # How a server is ended.
            return
        finally:
            worker.close()


def _listen(host: str, port: int) -> socket.socket:
    """Raises OptionError for a place where nothing can listen."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OptionError(
            f"{host}:{port}: nothing can listen there ({error.strerror}); give another --port"
        ) from None
