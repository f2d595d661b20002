// SPDX-License-Identifier: Apache-2.0
/*
 * tcp.c - connections: accepted, connected to a backend, and pumped (way.c) until both ends are done.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "relay.h"
#include "way.h"

#define EVENTS (EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP | EPOLLET)
#define SILENCE_S 300 /* until a silent peer is asked whether it is still there */
#define ASK_EVERY_S 30

struct connection {
	struct source client, backend;
	struct service *service;
	struct address peer;
	struct list of_backend; /* in struct backend's users while there is one */
	struct list waiting;	/* for the connect, in the order of their deadlines */
	struct list busy;	/* had more than its turn */
	uint64_t deadline_ms;
	unsigned attempts;
	const struct backend *tried; /* only to be compared: it may be gone */
	bool has_backend, connected, is_busy, closed;
	struct way forth, back;
};

static struct list waiting = { &waiting, &waiting };
static struct list busy = { &busy, &busy };
static int reserve_fd = -1;

/* A peer that has vanished says nothing: without asking, its connection would stay for ever. */
static void set_up(int fd)
{
	int one = 1, silence_s = SILENCE_S, every_s = ASK_EVERY_S;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &one, sizeof(one)); /* an urgent byte is one of the stream */
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &silence_s, sizeof(silence_s));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every_s, sizeof(every_s));
}

int tcp_listen(struct service *service, const struct address *address)
{
	int one = 1, fd = socket(address->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return -errno;
	if (reserve_fd < 0)
		reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	set_up(fd); /* accepted sockets inherit it */
	if (address->any.sa_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (bind(fd, &address->any, address->length) || listen(fd, SOMAXCONN)) {
		int error = -errno;

		close(fd);
		return error;
	}
	service->source = (struct source){ SOURCE_TCP_LISTENER, fd, service };
	return 0;
}

static void leave_backend(struct connection *c)
{
	if (c->has_backend)
		list_remove(&c->of_backend);
	c->has_backend = false;
	if (c->backend.fd >= 0)
		close(c->backend.fd);
	c->backend.fd = -1;
}

/* reset: the peers see an RST, not an orderly end. */
static void end(struct connection *c, bool reset)
{
	struct linger now = { 1, 0 };

	if (c->closed)
		return;
	c->closed = true;
	if (!c->connected)
		list_remove(&c->waiting);
	if (c->is_busy)
		list_remove(&c->busy);
	if (reset) {
		setsockopt(c->client.fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
		if (c->backend.fd >= 0)
			setsockopt(c->backend.fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	}
	leave_backend(c);
	close(c->client.fd);
	way_end(&c->forth);
	way_end(&c->back);
	c->service->open--;
	free_later(c);
}

void tcp_end(struct list *user)
{
	end(OWNER(user, struct connection, of_backend), true);
}

/* Begins a connect to a backend, another one than the last; false: there is none to try. */
static bool try_backend(struct connection *c)
{
	while (c->attempts < CONNECT_TRIES) {
		struct backend *backend = backend_choose(c->service, &c->peer, c->tried);

		if (!backend)
			return false;
		c->attempts++;
		c->tried = backend;
		c->backend.fd = socket(backend->address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		if (c->backend.fd < 0)
			return false;
		set_up(c->backend.fd);
		list_add(&backend->users, &c->of_backend);
		c->has_backend = true;
		if ((!connect(c->backend.fd, &backend->address.any, backend->address.length) ||
		     errno == EINPROGRESS) &&
		    !watch(&c->backend, EVENTS))
			return true;
		leave_backend(c);
	}
	return false;
}

static void fail(struct connection *c)
{
	counters.failed++;
	c->service->failed++;
	end(c, true);
}

static void begin(struct service *service, int fd, const struct address *peer)
{
	struct connection *c = calloc(1, sizeof(*c));

	if (!c) {
		close(fd);
		return;
	}
	c->service = service;
	c->peer = *peer;
	c->client = (struct source){ SOURCE_TCP_CLIENT, fd, c };
	c->backend = (struct source){ SOURCE_TCP_BACKEND, -1, c };
	way_start(&c->forth, &c->client, &c->backend);
	way_start(&c->back, &c->backend, &c->client);
	c->deadline_ms = now_ms() + CONNECT_TIMEOUT_MS;
	list_add(&waiting, &c->waiting);
	counters.accepted++;
	service->accepted++;
	service->open++;
	if (!try_backend(c))
		fail(c);
}

/*
 * Out of file descriptors: the client is told at once and does not hang in the queue. Returns whether one was; where
 * the whole machine is out of them, somebody else may have taken the reserve.
 */
static bool refuse_one(int listener)
{
	int fd;

	close(reserve_fd);
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (fd >= 0) {
		struct linger now = { 1, 0 };

		setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
		close(fd);
		counters.refused++;
	}
	reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	return fd >= 0;
}

void tcp_accept(struct service *service)
{
	for (;;) {
		struct address peer = { .length = sizeof(struct sockaddr_in6) };
		int fd = accept4(service->source.fd, &peer.any, &peer.length, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd >= 0) {
			begin(service, fd, &peer);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE) {
			if (!refuse_one(service->source.fd))
				return; /* the queue is not empty: there will be another event */
		} else if (errno != ECONNABORTED && errno != EINTR) {
			return;
		}
	}
}

/* A reset at one end is one at the other, behind what has been said before it. */
static void break_off(struct connection *c)
{
	way_last_words(&c->forth);
	way_last_words(&c->back);
	end(c, true);
}

static void pump_ways(struct connection *c, bool want_forth, bool want_back)
{
	int forth = want_forth ? way_pump(&c->forth) : 0;
	int back = forth < 0 ? -1 : want_back ? way_pump(&c->back) : 0;

	if (forth < 0 || back < 0) {
		break_off(c);
	} else if (c->forth.done && c->back.done) {
		end(c, false);
	} else if ((forth > 0 || back > 0) && !c->is_busy) {
		c->is_busy = true;
		list_add(&busy, &c->busy);
	}
}

static void connected(struct connection *c)
{
	socklen_t length = sizeof(int);
	int error = 0;

	getsockopt(c->backend.fd, SOL_SOCKET, SO_ERROR, &error, &length);
	if (error && error != ECONNRESET && error != EPIPE) {
		leave_backend(c);
		if (!try_backend(c))
			fail(c);
		return;
	}
	c->connected = true;
	list_remove(&c->waiting);
	if (error) {
		break_off(c); /* it was there, may have said something, and has reset it */
		return;
	}
	if (watch(&c->client, EVENTS)) {
		fail(c);
		return;
	}
	pump_ways(c, true, true);
}

void tcp_event(struct source *source, uint32_t events)
{
	struct connection *c = source->owner;
	bool from_client, readable;

	if (c->closed)
		return;
	from_client = source->kind == SOURCE_TCP_CLIENT;
	if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLPRI))
		*(from_client ? &c->forth.look_behind : &c->back.look_behind) = true;
	if (!c->connected) {
		if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
			connected(c);
		return;
	}
	if (events & EPOLLERR) {
		break_off(c);
		return;
	}
	readable = events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP);
	pump_ways(c, from_client ? readable : way_waits_for_room(&c->forth),
		  from_client ? way_waits_for_room(&c->back) : readable);
}

bool tcp_work(void)
{
	struct list *last = busy.previous;

	while (busy.next != &busy) {
		struct list *first = busy.next;
		struct connection *c = OWNER(first, struct connection, busy);

		list_remove(first);
		c->is_busy = false;
		pump_ways(c, true, true);
		if (first == last)
			break;
	}
	return busy.next != &busy;
}

int tcp_timeout_ms(void)
{
	struct connection *c;
	int64_t left;

	if (waiting.next == &waiting)
		return 1000;
	c = OWNER(waiting.next, struct connection, waiting);
	left = (int64_t)(c->deadline_ms - now_ms());
	return left < 0 ? 0 : left < 1000 ? (int)left : 1000;
}

/* Who does not answer is left for another. Where there is none, he may be slow. */
static void try_on(struct connection *c)
{
	list_remove(&c->waiting);
	list_add(&waiting, &c->waiting);
	c->deadline_ms = now_ms() + CONNECT_TIMEOUT_MS;
	if (!backend_choose(c->service, &c->peer, c->tried)) {
		if (++c->attempts > CONNECT_TRIES)
			fail(c);
		return;
	}
	leave_backend(c);
	if (!try_backend(c))
		fail(c);
}

void tcp_expire(void)
{
	uint64_t now = now_ms();

	while (waiting.next != &waiting) {
		struct connection *c = OWNER(waiting.next, struct connection, waiting);

		if (c->deadline_ms > now)
			return;
		try_on(c);
	}
}
