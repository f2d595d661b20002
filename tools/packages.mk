# Debian packages, by what needs them. tools/apt-install installs only what is missing.
RUN_PACKAGES     := clang llvm libbpf-dev libbpf1 linux-libc-dev gcc libc6-dev musl-tools make python3 python3-venv \
                    iproute2 containernetworking-plugins iptables util-linux procps curl jq iputils-ping libnftables1
TEST_PACKAGES    := tcpdump nftables ethtool bpftool containerd runc podman busybox-static openssl
KERNELS_PACKAGES := qemu-system-x86 busybox-static
WINDOWS_PACKAGES := gcc-mingw-w64-x86-64 wine64
