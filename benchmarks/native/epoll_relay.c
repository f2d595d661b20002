// SPDX-License-Identifier: Apache-2.0
/*
 * The user-mode relay that people write: one thread, epoll, a buffer each way, read() and write(). The peer of the
 * `relay` case. usage: epoll_relay LISTEN-ADDRESS FIRST-PORT PORTS BACKEND-ADDRESS (the backend's ports are the same)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER_BYTES 65536

struct end {
	int fd, listener;
	struct end *other;
	size_t start, length; /* of what this end sent and the other has not taken */
	int ended, shut, dead;
	struct sockaddr_in backend; /* of a listener */
	char buffer[];
};

static int epoll_fd;
static struct end *dead[1024];
static int dead_count;

static struct end *make(int fd, size_t room)
{
	struct end *e = calloc(1, sizeof(*e) + room);

	if (!e)
		exit(1);
	e->fd = fd;
	return e;
}

static void watch(struct end *e)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = e };

	epoll_ctl(epoll_fd, EPOLL_CTL_ADD, e->fd, &event);
}

static void finish(struct end *e)
{
	if (e->dead)
		return;
	for (int i = 0; i < 2; i++, e = e->other) {
		e->dead = 1;
		close(e->fd);
		dead[dead_count++] = e;
	}
}

static void accept_all(struct end *listener)
{
	int fd, one = 1;

	while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
		int back = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
		struct end *a = make(fd, BUFFER_BYTES), *b = make(back, BUFFER_BYTES);

		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		setsockopt(back, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		a->other = b;
		b->other = a;
		connect(back, (struct sockaddr *)&listener->backend, sizeof(listener->backend));
		watch(b);
		watch(a);
	}
}

static void move(struct end *from)
{
	struct end *to = from->other;

	for (;;) {
		ssize_t n;

		while (from->length) {
			n = write(to->fd, from->buffer + from->start, from->length);
			if (n < 0 && (errno == EAGAIN || errno == ENOTCONN))
				return;
			if (n < 0) {
				finish(from);
				return;
			}
			from->start += n;
			from->length -= n;
		}
		if (from->ended) {
			if (!from->shut)
				shutdown(to->fd, SHUT_WR);
			from->shut = 1;
			if (to->shut)
				finish(from);
			return;
		}
		n = read(from->fd, from->buffer, BUFFER_BYTES);
		if (n < 0 && (errno == EAGAIN || errno == ENOTCONN))
			return;
		if (n < 0) {
			finish(from);
			return;
		}
		from->ended = !n;
		from->start = 0;
		from->length = n;
	}
}

int main(int argc, char **argv)
{
	struct epoll_event events[256];
	int one = 1;

	if (argc != 5)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	epoll_fd = epoll_create1(0);
	for (int i = 0; i < atoi(argv[3]); i++) {
		struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2]) + i) };
		struct end *listener = make(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), 0);

		listener->listener = 1;
		listener->backend = address;
		inet_pton(AF_INET, argv[1], &address.sin_addr);
		inet_pton(AF_INET, argv[4], &listener->backend.sin_addr);
		setsockopt(listener->fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
		if (bind(listener->fd, (struct sockaddr *)&address, sizeof(address)) || listen(listener->fd, 4096)) {
			perror("epoll_relay");
			return 1;
		}
		watch(listener);
	}
	puts("ready");
	fflush(stdout);
	for (;;) {
		int count = epoll_wait(epoll_fd, events, 256, -1);

		for (int i = 0; i < count; i++) {
			struct end *e = events[i].data.ptr;

			if (e->listener) {
				accept_all(e);
				continue;
			}
			if (!e->dead)
				move(e);
			if (!e->dead)
				move(e->other);
		}
		while (dead_count)
			free(dead[--dead_count]);
	}
}
