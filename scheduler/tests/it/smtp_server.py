"""A real SMTP server for the tests: keeps each mail as a file, and is slow or refuses when told so.

Arguments: directory, port, protection (starttls, tls, plain). It obeys the file `mode` of its directory:
`ok`, `refuse`, or `slow`, which takes a mail only after 30 seconds.
"""

import asyncio
import json
import pathlib
import signal
import ssl
import sys

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

folder = pathlib.Path(sys.argv[1])
port = int(sys.argv[2])
protection = sys.argv[3]


class Keeper:
    count = len(list(folder.glob("*.mail")))

    async def handle_DATA(self, server, session, envelope):
        mode = (folder / "mode").read_text().strip()
        if mode == "refuse":
            return "451 try again later"
        if mode == "slow":
            await asyncio.sleep(30)
        if any("refused" in address for address in envelope.rcpt_tos):
            return "550 no such mailbox"
        self.count += 1
        mail = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "tls": session.ssl is not None or protection == "tls",
            "login": session.auth_data.decode() if session.auth_data else None,
            "text": envelope.content.decode().replace("\r\n", "\n"),
        }
        draft = folder / "draft"
        draft.write_text(json.dumps(mail))
        draft.rename(folder / f"{self.count:04}.mail")
        return "250 taken"


def login(server, session, envelope, mechanism, data):
    known = isinstance(data, LoginPassword) and data.login == b"dodo" and data.password == b"s3cr3t/mail"
    return AuthResult(success=known, handled=False, auth_data=data.login if known else None)


settings = {"hostname": "127.0.0.1", "port": port, "authenticator": login}
if protection != "plain":
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    if protection == "tls":
        settings |= {"ssl_context": context, "auth_require_tls": False, "auth_required": True}
    else:
        settings |= {"tls_context": context, "require_starttls": True, "auth_required": True}

controller = Controller(Keeper(), **settings)
controller.start()
(folder / "ready").touch()
signal.pause()
