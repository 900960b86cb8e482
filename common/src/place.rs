//! Where this process runs, as the registry and the log directories name it.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// The name of this machine; in a container, that of the container.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").map_or("unknown".to_owned(), |name| name.trim().to_owned())
}

/// The address this machine would send from; loopback where it has no route. Connecting a UDP socket
/// sends nothing: it only asks the kernel for a route (192.0.2.0/24 is documentation, RFC 5737).
pub fn own_address() -> IpAddr {
    let ask = || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    };
    ask().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |address| address.ip())
}
