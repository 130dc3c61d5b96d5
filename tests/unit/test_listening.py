"""Where the API listens: bound before anything is started, or told in words why not."""

import socket

import pytest

from api.listening import PortTaken, bind, listen
from shared.errors import ConfigError


def test_what_is_bound_lets_nobody_in_before_it_is_served():
    (bound,) = bind("127.0.0.1", 0)

    with bound, pytest.raises(ConnectionRefusedError):
        socket.create_connection(bound.getsockname()[:2], 1)


def test_a_port_that_is_taken_is_no_wrong_configuration_and_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        with pytest.raises(PortTaken, match=f"port {port} on 127.0.0.1 is in use .*--port, server.port"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-name.invalid"])
def test_an_address_that_is_not_this_machines_is(host):
    with pytest.raises(ConfigError, match=r"cannot listen on .*server.host"):
        bind(host, 0)


def test_of_two_that_have_bound_a_port_one_listens_and_the_other_is_told():
    (one,) = bind("127.0.0.1", 0)
    port = one.getsockname()[1]
    (other,) = bind("127.0.0.1", port)

    with one, other:
        listen([one], "127.0.0.1", port)

        with pytest.raises(PortTaken):
            listen([other], "127.0.0.1", port)
