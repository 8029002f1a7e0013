"""What `uvicorn.Config` is made with: `[workers.uvicorn]`, TLS, and what several kinds of sockets ask for.

A part of launcher.py, loaded by it. Run by itself it is asked what the installed Uvicorn thinks of `[workers.uvicorn]`:
TANDEM_UVICORN holds {"options": {name: [value, is_word]}, "tls": {...} or null}, and the answer is
{"version": "...", "problems": [[name, what is wrong, what to do or null]]}. A word comes from the environment, and may
stand for a number. Python 3.8 and Uvicorn 0.22 or newer.
"""

import copy
import json
import os
import sys
import weakref

HTTP_CHOICES = ("auto", "h11", "httptools")  # whose connections drain.py knows
NOT_OPTIONS = ("app", "version")
# A proxy beside the worker, by both families and in IPv6's clothes.
TRUSTED = "127.0.0.1,::1,::ffff:127.0.0.1"
MAPPED = "::ffff:"
UNIX = ("unix", 0)  # stands for the client of a unix socket while Uvicorn decides whom it trusts
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Unfit(Exception):
    """What would be accepted in place of a value."""


def read(given):
    """The options as `uvicorn.Config` takes them, and what is wrong with the others."""
    import click
    import uvicorn
    from uvicorn.main import main

    known = {param.name: param for param in main.params if param.name not in NOT_OPTIONS}
    options, problems = {}, []
    for name, (value, is_word) in given.items():
        param = known.get(name)
        if param is None:
            import difflib  # the application, which is not served now, may have a file of that name

            close = difflib.get_close_matches(name, known, 1)
            hint = "did you mean `%s`?" % close[0] if close else "`uvicorn --help` names its options"
            problems.append((name, "Uvicorn %s has no such option" % uvicorn.__version__, hint))
            continue
        try:
            options[name] = convert(click, param, value, is_word)
        except Unfit as unfit:
            problems.append((name, "%s: expected %s" % (json.dumps(value), unfit), None))
        except ImportError as error:
            problems.append((name, "%s: %s" % (json.dumps(value), error), "add it to the requirements"))
    return options, problems


def convert(click, param, value, is_word):
    if param.name in ("http", "ws"):
        return protocol(param.name, value)
    if param.name == "forwarded_allow_ips" and isinstance(value, list):
        return ",".join(value)
    if param.multiple:
        return [header(one) for one in ([value] if isinstance(value, str) else listed(value))]
    kind = param.type
    if isinstance(kind, click.types.IntParamType):
        return number(value, is_word, int, "a whole number of at least 0")
    if isinstance(kind, click.types.FloatParamType):
        return float(number(value, is_word, (int, float), "a number of at least 0"))
    if isinstance(kind, click.types.BoolParamType):
        return boolean(value, is_word)
    if not isinstance(value, str):
        raise Unfit("text")
    if isinstance(kind, click.Choice):
        if value.lower() not in kind.choices:
            raise Unfit("one of " + ", ".join(kind.choices))
        return value.lower()
    if isinstance(kind, click.Path):
        if not os.path.isfile(value):
            raise Unfit("a file that is there")
    return value


def listed(value):
    if not isinstance(value, list):
        raise Unfit('a list of texts, such as ["X-Frame-Options: DENY"]')
    return value


def header(text):
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    sound = colon and name.isascii() and name.isprintable() and not set(' ()<>@,;"/[]?={}') & set(name)
    if not (sound and name) or any(letter in value for letter in "\r\n\0") or not is_latin(value):
        raise Unfit('"Name: value"')
    return name, value


def is_latin(text):
    return all(ord(letter) < 256 for letter in text)


def number(value, is_word, kinds, expected):
    if is_word:
        try:
            value = int(value) if kinds is int else float(value)
        except ValueError:
            raise Unfit(expected) from None
    if isinstance(value, bool) or not isinstance(value, kinds) or value < 0:
        raise Unfit(expected)
    return value


def boolean(value, is_word):
    word = value.lower() if is_word and isinstance(value, str) else None
    if word in TRUE + FALSE:
        return word in TRUE
    if not isinstance(value, bool):
        raise Unfit("true or false")
    return value


def protocol(name, value):
    """A protocol that can be imported: Uvicorn would find out only behind the gate."""
    from uvicorn.config import HTTP_PROTOCOLS, WS_PROTOCOLS
    from uvicorn.importer import import_from_string

    choices = HTTP_CHOICES if name == "http" else tuple(WS_PROTOCOLS)
    if value not in choices:
        raise Unfit("one of " + ", ".join(choices))
    path = (HTTP_PROTOCOLS if name == "http" else WS_PROTOCOLS)[value]
    if path is not None:
        import_from_string(path)
    return value


def for_config(text, base):
    """The arguments of `uvicorn.Config`: `base`, and what TANDEM_UVICORN says."""
    said = json.loads(text) if text else {}
    options, problems = read(said.get("options") or {})
    if problems:
        raise ValueError("\n".join("workers.uvicorn.%s: %s" % (name, what) for name, what, _ in problems))
    arguments = dict(base)
    if "log_config" in options and "log_level" not in options:
        arguments.pop("log_level", None)  # the file says it
    elif "use_colors" in options and "log_config" not in options:
        from uvicorn.config import LOGGING_CONFIG

        arguments["log_config"] = copy.deepcopy(LOGGING_CONFIG)
    arguments.update(options)
    trusted = options.get("forwarded_allow_ips", os.environ.get("FORWARDED_ALLOW_IPS", TRUSTED))
    # Who may connect to a unix socket is what its file's mode says.
    arguments["forwarded_allow_ips"] = trusted if trusted == "*" else trusted + "," + UNIX[0]
    tls = said.get("tls")
    if tls:
        arguments.update(ssl_certfile=tls["cert"], ssl_keyfile=tls["key"], ssl_cert_reqs=tls["client"])
        if tls["ca"]:
            arguments["ssl_ca_certs"] = tls["ca"]
    return arguments


def finish(config, listening):
    """What a loaded `uvicorn.Config` lacks for these sockets, before the app's startup."""
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    if listening.has_unix() and isinstance(config.loaded_app, ProxyHeadersMiddleware):
        config.loaded_app.app = WithoutStandIn(config.loaded_app.app)
        config.loaded_app = WithStandIn(config.loaded_app)
    if listening.has_both_families():
        config.loaded_app = WithPlainAddresses(config.loaded_app)
    if config.ssl:
        config.http_protocol_class = counted(config.http_protocol_class)


class Layer:
    """ASGI around ASGI; changes the scope in place, as Uvicorn's own log reads it afterwards."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] != "lifespan":
            self.change(scope)
        return await self.app(scope, receive, send)


class WithStandIn(Layer):
    def change(self, scope):
        if scope.get("client") is None:
            scope["client"] = UNIX


class WithoutStandIn(Layer):
    def change(self, scope):
        if scope.get("client") == UNIX:
            scope["client"] = None


class WithPlainAddresses(Layer):
    """A client that came by IPv4 is known by its IPv4 address, to the app, to logs, and to those who trust a proxy."""

    def change(self, scope):
        for end in ("client", "server"):
            address = scope.get(end)
            if address and address[0].startswith(MAPPED):
                scope[end] = (address[0][len(MAPPED) :], address[1])


HANDSHAKING = weakref.WeakSet()


def counted(protocol_class):
    """The same protocol, in HANDSHAKING from accept(2) until TLS is agreed on: Uvicorn's set has it only then, and a drain
    would end without it."""

    class Counted(protocol_class):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            HANDSHAKING.add(self)

        def connection_made(self, transport):
            HANDSHAKING.discard(self)
            super().connection_made(transport)

    return Counted


def main():
    said = json.loads(os.environ["TANDEM_UVICORN"])
    import uvicorn

    _, problems = read(said["options"])
    print(json.dumps({"version": uvicorn.__version__, "problems": problems}))


if __name__ == "__main__":
    sys.path[:] = [path for path in sys.path if path]  # `python -c` would import from the working directory
    main()
