// SPDX-License-Identifier: Apache-2.0
/*
 * The load generator of the benchmarks: one static program, server and client, IPv4 and IPv6.
 *
 *   load -s -m MODE -a ADDR -P PORT [-n NETNS] [-p CPU]
 *   load -c -m MODE -a ADDR -P PORT [-n NETNS] [-p CPU] -t SECONDS
 *
 *   stream   one TCP connection, bytes/s as counted by the receiver
 *   rr       one TCP connection, 1 byte there and 1 byte back; transactions/s
 *   crr      a TCP connection per transaction: connect, 1 byte each way, close; connections/s
 *   udp_rr   1-byte datagrams there and back; transactions/s
 *
 * NETNS is the path of a network namespace file; CPU pins the process, so that a client and a server on one
 * CPU measure the datapath and not the wake-up of an idle CPU.
 *
 * crr never uses a tuple twice: the client walks SOURCE_PORTS explicit source ports, from another one on for each
 * PORT, so that those it has just used for the last are not the first again. When all are used the run ends early;
 * the rate is taken from the time that passed. So few of them also keep source NAT inside its port pool.
 *
 * The server prints "ready" when it listens and serves until it is killed (or its parent dies). The client
 * prints one JSON object: {"mode","seconds","count","rate","lost","retransmits"}; rate is count / seconds,
 * count is bytes for stream and transactions otherwise. Errors go to stderr, status 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SOURCE_PORTS 12000
#define SOURCE_PORTS_STEP 1009 /* from one PORT to the next; prime to SOURCE_PORTS */
#define FIRST_SOURCE_PORT 20000
#define STREAM_BUFFER (128 * 1024)
#define WARM_UP_TRANSACTIONS 64
#define CLOCK_EVERY 16 /* transactions between two looks at the clock */
#define UDP_TIMEOUT_US 200000
#define UDP_LOST_MAX 20
#define GRACE_S 8 /* beyond the measured time, before the client gives up */

enum mode { STREAM, RR, CRR, UDP_RR };

static const char *const mode_names[] = { "stream", "rr", "crr", "udp_rr" };

struct options {
	int server;
	enum mode mode;
	int port;
	double seconds;
	struct sockaddr_storage addr;
	socklen_t addr_len;
};

struct result {
	double seconds;
	uint64_t count;
	unsigned int lost;
	unsigned int retransmits;
};

static char buffer[STREAM_BUFFER];

static void die(const char *format, ...)
{
	int saved = errno;
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	if (saved)
		fprintf(stderr, ": %s", strerror(saved));
	fputc('\n', stderr);
	exit(1);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void set_port(struct sockaddr_storage *addr, int port)
{
	if (addr->ss_family == AF_INET6)
		((struct sockaddr_in6 *)addr)->sin6_port = htons(port);
	else
		((struct sockaddr_in *)addr)->sin_port = htons(port);
}

static struct sockaddr_storage any_address(const struct options *o, int port)
{
	struct sockaddr_storage any = { .ss_family = o->addr.ss_family };

	set_port(&any, port);
	return any;
}

static int open_socket(const struct options *o, int source_port)
{
	int type = o->mode == UDP_RR ? SOCK_DGRAM : SOCK_STREAM;
	int fd = socket(o->addr.ss_family, type | SOCK_CLOEXEC, 0);
	int one = 1;

	if (fd < 0)
		die("socket");
	if (source_port) {
		struct sockaddr_storage any = any_address(o, source_port);

		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (bind(fd, (struct sockaddr *)&any, o->addr_len))
			die("bind to port %d", source_port);
	}
	if (type == SOCK_STREAM && o->mode != STREAM)
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

/* --- server ------------------------------------------------------------------------------------- */

/* RR and CRR are the same to the server: answer byte by byte until the client closes. */
static void serve_transactions(int fd)
{
	char byte;

	while (read(fd, &byte, 1) == 1)
		if (write(fd, &byte, 1) != 1)
			return;
}

static void serve_stream(int fd)
{
	uint64_t total = 0;
	ssize_t n;

	while ((n = read(fd, buffer, sizeof(buffer))) > 0)
		total += n;
	if (write(fd, &total, sizeof(total)) != sizeof(total))
		return;
}

static void serve_datagrams(int fd)
{
	struct sockaddr_storage from;
	char byte;

	for (;;) {
		socklen_t len = sizeof(from);
		ssize_t n = recvfrom(fd, &byte, 1, 0, (struct sockaddr *)&from, &len);

		if (n >= 0)
			sendto(fd, &byte, n, 0, (struct sockaddr *)&from, len);
	}
}

static void serve(const struct options *o, int listener)
{
	int one = 1;

	if (o->mode == UDP_RR)
		serve_datagrams(listener);
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);

		if (fd < 0)
			continue;
		if (o->mode == STREAM) {
			serve_stream(fd);
		} else {
			setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
			serve_transactions(fd);
		}
		close(fd);
	}
}

static void run_server(const struct options *o)
{
	int fd = open_socket(o, o->port);

	if (o->mode != UDP_RR && listen(fd, 1024))
		die("listen");
	puts("ready");
	fflush(stdout);
	serve(o, fd);
}

/* --- client ------------------------------------------------------------------------------------- */

static int connect_from(const struct options *o, int source_port)
{
	struct sockaddr_storage to = o->addr;
	int fd = open_socket(o, source_port);

	set_port(&to, o->port);
	if (connect(fd, (struct sockaddr *)&to, o->addr_len))
		die("connect to port %d", o->port);
	return fd;
}

static void transact(int fd)
{
	char byte = 'x';

	if (write(fd, &byte, 1) != 1)
		die("write");
	errno = 0;
	if (read(fd, &byte, 1) != 1)
		die("read");
}

static unsigned int retransmits(int fd)
{
	struct tcp_info info = { 0 };
	socklen_t len = sizeof(info);

	getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len);
	return info.tcpi_total_retrans;
}

static struct result client_stream(const struct options *o)
{
	int fd = connect_from(o, 0);
	struct result r = { 0 };
	double start = now();
	size_t got = 0;

	while (now() - start < o->seconds)
		if (write(fd, buffer, sizeof(buffer)) < 0)
			die("write");
	shutdown(fd, SHUT_WR);
	while (got < sizeof(r.count)) {
		ssize_t n = read(fd, (char *)&r.count + got, sizeof(r.count) - got);

		if (n <= 0)
			die("read of the server's count");
		got += n;
	}
	r.seconds = now() - start;
	r.retransmits = retransmits(fd);
	close(fd);
	return r;
}

static struct result client_rr(const struct options *o)
{
	int fd = connect_from(o, 0);
	struct result r = { 0 };
	double start;

	for (int i = 0; i < WARM_UP_TRANSACTIONS; i++)
		transact(fd);
	start = now();
	do {
		for (int i = 0; i < CLOCK_EVERY; i++)
			transact(fd);
		r.count += CLOCK_EVERY;
		r.seconds = now() - start;
	} while (r.seconds < o->seconds);
	r.retransmits = retransmits(fd);
	close(fd);
	return r;
}

static struct result client_crr(const struct options *o)
{
	int first = o->port * SOURCE_PORTS_STEP % SOURCE_PORTS;
	struct result r = { 0 };
	double start = 0;

	for (int i = 0; i < SOURCE_PORTS; i++) {
		int fd = connect_from(o, FIRST_SOURCE_PORT + (first + i) % SOURCE_PORTS);

		transact(fd);
		close(fd);
		if (i < WARM_UP_TRANSACTIONS) {
			start = now();
			continue;
		}
		r.count++;
		r.seconds = now() - start;
		if (r.seconds >= o->seconds)
			break;
	}
	return r;
}

/* One transaction; a datagram that stays away for UDP_TIMEOUT_US is counted and sent again. */
static void transact_datagram(int fd, struct result *r)
{
	char byte = 'x';

	for (;;) {
		if (send(fd, &byte, 1, 0) != 1)
			die("send");
		if (recv(fd, &byte, 1, 0) == 1)
			return;
		if (errno != EAGAIN)
			die("recv");
		if (++r->lost > UDP_LOST_MAX)
			die("more than %d datagrams lost", UDP_LOST_MAX);
	}
}

static struct result client_udp_rr(const struct options *o)
{
	struct timeval timeout = { .tv_usec = UDP_TIMEOUT_US };
	int fd = connect_from(o, 0);
	struct result r = { 0 };
	double start;

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	for (int i = 0; i < WARM_UP_TRANSACTIONS; i++)
		transact_datagram(fd, &r);
	start = now();
	do {
		for (int i = 0; i < CLOCK_EVERY; i++)
			transact_datagram(fd, &r);
		r.count += CLOCK_EVERY;
		r.seconds = now() - start;
	} while (r.seconds < o->seconds);
	close(fd);
	return r;
}

static void run_client(const struct options *o)
{
	static struct result (*const clients[])(const struct options *) = {
		client_stream, client_rr, client_crr, client_udp_rr,
	};
	struct result r;

	alarm((unsigned int)o->seconds + GRACE_S);
	r = clients[o->mode](o);
	if (!r.count || r.seconds <= 0) {
		errno = 0;
		die("nothing was transferred");
	}
	printf("{\"mode\":\"%s\",\"seconds\":%.6f,\"count\":%llu,\"rate\":%.1f,\"lost\":%u,\"retransmits\":%u}\n",
	       mode_names[o->mode], r.seconds, (unsigned long long)r.count, r.count / r.seconds, r.lost,
	       r.retransmits);
}

/* --- set-up ------------------------------------------------------------------------------------- */

static void enter_netns(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, CLONE_NEWNET))
		die("network namespace %s", path);
	close(fd);
}

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("pinning to CPU %d", cpu);
}

static enum mode parse_mode(const char *name)
{
	for (int i = 0; i < 4; i++)
		if (!strcmp(name, mode_names[i]))
			return i;
	errno = 0;
	die("unknown mode %s", name);
	return STREAM;
}

static void parse_address(struct options *o, const char *text)
{
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&o->addr;
	struct sockaddr_in *v4 = (struct sockaddr_in *)&o->addr;

	if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
		o->addr.ss_family = AF_INET;
		o->addr_len = sizeof(*v4);
	} else if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
		o->addr.ss_family = AF_INET6;
		o->addr_len = sizeof(*v6);
	} else {
		errno = 0;
		die("not an address: %s", text);
	}
}

int main(int argc, char **argv)
{
	struct options o = { .server = -1 };
	int option;

	while ((option = getopt(argc, argv, "scm:a:P:n:p:t:")) != -1) {
		switch (option) {
		case 's': o.server = 1; break;
		case 'c': o.server = 0; break;
		case 'm': o.mode = parse_mode(optarg); break;
		case 'a': parse_address(&o, optarg); break;
		case 'P': o.port = atoi(optarg); break;
		case 'n': enter_netns(optarg); break;
		case 'p': pin(atoi(optarg)); break;
		case 't': o.seconds = atof(optarg); break;
		default: return 2;
		}
	}
	if (o.server < 0 || !o.addr_len || !o.port || (!o.server && o.seconds <= 0)) {
		fprintf(stderr, "usage: load -s|-c -m MODE -a ADDR -P PORT [-n NETNS] [-p CPU] [-t SECONDS]\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	if (o.server) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run_server(&o);
	} else {
		run_client(&o);
	}
	return 0;
}
