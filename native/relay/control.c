// SPDX-License-Identifier: Apache-2.0
/*
 * control.c - what the daemon says to the relay: lines on a unix socket, one answer line each.
 *
 *   put ID tcp|udp LISTEN-ADDRESS AFFINITY-SECONDS [ADDRESS|PORT|a|d]...   -> ok ID LISTENER-PORT
 *	 Makes a service, or replaces its backends: connections to those that stay go on, those to others end.
 *	 a: active, d: draining. Another address to listen on is another listener, with another port.
 *   del ID	-> ok ID 0
 *   list	-> service ID PORT tcp|udp ACCEPTED FAILED OPEN, a line each, then: end
 *   users	-> carries ID ADDRESS PORT, for each backend with connections or sessions, then: end
 *   stats	-> stats ACCEPTED FAILED REFUSED DATAGRAMS DATAGRAMS-LOST
 *   quit	-> the relay ends, and with it all connections
 *
 * Anything else is answered by "error ID-or-- text". Fields are separated by single spaces.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "services.h"

#define MAX_LINE (1 << 20)

struct control {
	struct source source;
	size_t length;
	char *unsent; /* answers; no command is read before they are gone */
	size_t unsent_start, unsent_end, unsent_room;
	bool stuck, closed, broken;
	char line[MAX_LINE];
};

int control_listen(const char *path)
{
	static struct source source;
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	unlink(path);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) || chmod(path, 0600) || listen(fd, 8)) {
		int error = -errno;

		close(fd);
		return error;
	}
	source = (struct source){ SOURCE_CONTROL_LISTENER, fd, NULL };
	return watch(&source, EPOLLIN);
}

void control_accept(struct source *source)
{
	int fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct control *control;

	if (fd < 0)
		return;
	control = malloc(sizeof(*control));
	if (!control) {
		close(fd);
		return;
	}
	control->source = (struct source){ SOURCE_CONTROL, fd, control };
	control->length = 0;
	control->unsent = NULL;
	control->unsent_start = control->unsent_end = control->unsent_room = 0;
	control->stuck = control->closed = control->broken = false;
	if (watch(&control->source, EPOLLIN)) {
		close(fd);
		free(control);
	}
}

__attribute__((format(printf, 2, 3))) static void answer(struct control *control, const char *format, ...)
{
	char text[256];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(text, sizeof(text) - 1, format, arguments);
	va_end(arguments);
	if (length > (int)sizeof(text) - 2)
		length = sizeof(text) - 2;
	text[length++] = '\n';
	if (control->unsent_room - control->unsent_end < (size_t)length) {
		size_t room = 2 * control->unsent_room + sizeof(text);
		char *more = realloc(control->unsent, room);

		if (!more) {
			control->broken = true;
			return;
		}
		control->unsent = more;
		control->unsent_room = room;
	}
	memcpy(control->unsent + control->unsent_end, text, length);
	control->unsent_end += length;
}

static bool parse_address(const char *text, unsigned port, struct address *address)
{
	memset(address, 0, sizeof(*address));
	if (inet_pton(AF_INET, text, &address->v4.sin_addr) == 1) {
		address->v4.sin_family = AF_INET;
		address->v4.sin_port = htons(port);
		address->length = sizeof(address->v4);
		return true;
	}
	if (inet_pton(AF_INET6, text, &address->v6.sin6_addr) == 1) {
		address->v6.sin6_family = AF_INET6;
		address->v6.sin6_port = htons(port);
		address->length = sizeof(address->v6);
		return true;
	}
	return false;
}

static bool parse_number(const char *text, unsigned long most, unsigned long *number)
{
	char *end;

	if (!text || *text < '0' || *text > '9')
		return false;
	errno = 0;
	*number = strtoul(text, &end, 10);
	return !*end && !errno && *number <= most;
}

/* ADDRESS|PORT|a or d */
static bool parse_backend(char *text, struct wanted_backend *backend)
{
	char *port = strchr(text, '|'), *state = port ? strchr(port + 1, '|') : NULL;
	unsigned long number;

	if (!state)
		return false;
	*port++ = 0;
	*state++ = 0;
	backend->draining = !strcmp(state, "d");
	return (backend->draining || !strcmp(state, "a")) && parse_number(port, 65535, &number) && number &&
	       parse_address(text, number, &backend->address);
}

/* The rest of a put: its backends. What is wrong with it, or NULL. */
static const char *parse_backends(char *text, struct wanted *wanted)
{
	char *word;

	wanted->count = 0;
	while ((word = strsep(&text, " ")) && *word) {
		struct wanted_backend *backend = &wanted->backends[wanted->count];

		if (wanted->count == MAX_BACKENDS)
			return "too many backends";
		if (!parse_backend(word, backend))
			return "backend: want ADDRESS|PORT|a or d";
		wanted->count++;
	}
	return NULL;
}

static void put(struct control *control, char *rest)
{
	char *id = strsep(&rest, " "), *protocol = strsep(&rest, " "), *listen = strsep(&rest, " ");
	char *affinity = strsep(&rest, " ");
	static struct wanted wanted; /* large; one command at a time */
	struct service *service = NULL;
	unsigned long affinity_s;
	const char *error;

	if (!id || !*id || strlen(id) >= ID_BYTES) {
		answer(control, "error - put: want an id of 1 to %d bytes", ID_BYTES - 1);
		return;
	}
	if (!protocol || (strcmp(protocol, "tcp") && strcmp(protocol, "udp")) || !listen ||
	    !parse_address(listen, 0, &wanted.listen) || !parse_number(affinity, 86400, &affinity_s)) {
		answer(control, "error %s want tcp|udp, an address to listen on, affinity seconds up to 86400", id);
		return;
	}
	wanted.id = id;
	wanted.udp = !strcmp(protocol, "udp");
	wanted.affinity_ms = affinity_s * 1000;
	error = parse_backends(rest, &wanted);
	if (!error)
		service = service_put(&wanted, &error);
	if (service)
		answer(control, "ok %s %u", id, service->port);
	else
		answer(control, "error %s %s", id, error);
}

static void list(struct control *control)
{
	for (struct service *s = service_next(NULL); s; s = service_next(s))
		answer(control, "service %s %u %s %llu %llu %u", s->id, s->port, s->udp ? "udp" : "tcp",
		       (unsigned long long)s->accepted, (unsigned long long)s->failed, s->open);
	answer(control, "end");
}

static void users(struct control *control)
{
	char text[INET6_ADDRSTRLEN];

	for (struct service *s = service_next(NULL); s; s = service_next(s)) {
		for (unsigned i = 0; i < s->count; i++) {
			const struct backend *backend = s->backends[i];
			int family = backend->address.any.sa_family;
			const void *ip = family == AF_INET ? (void *)&backend->address.v4.sin_addr :
							     (void *)&backend->address.v6.sin6_addr;

			if (backend->users.next != &backend->users)
				answer(control, "carries %s %s %u", s->id, inet_ntop(family, ip, text, sizeof(text)),
				       ntohs(backend->address.v4.sin_port)); /* the same place in both kinds */
		}
	}
	answer(control, "end");
}

static void carry_out(struct control *control, char *line)
{
	char *rest = line, *verb = strsep(&rest, " ");

	if (!strcmp(verb, "put")) {
		put(control, rest);
	} else if (!strcmp(verb, "del") && rest) {
		service_delete(rest);
		answer(control, "ok %s 0", strlen(rest) < ID_BYTES ? rest : "-");
	} else if (!strcmp(verb, "list")) {
		list(control);
	} else if (!strcmp(verb, "users")) {
		users(control);
	} else if (!strcmp(verb, "stats")) {
		answer(control, "stats %llu %llu %llu %llu %llu", (unsigned long long)counters.accepted,
		       (unsigned long long)counters.failed, (unsigned long long)counters.refused,
		       (unsigned long long)counters.datagrams, (unsigned long long)counters.datagrams_lost);
	} else if (!strcmp(verb, "quit")) {
		exit(0);
	} else {
		answer(control, "error - want put, del, list, users, stats or quit");
	}
}

static void hang_up(struct control *control)
{
	close(control->source.fd);
	free(control->unsent);
	control->closed = true;
	free_later(control);
}

/* Who does not read his answers keeps nobody waiting but himself. */
static void send_answers(struct control *control)
{
	bool had = control->stuck;

	while (control->unsent_start < control->unsent_end) {
		ssize_t sent = send(control->source.fd, control->unsent + control->unsent_start,
				    control->unsent_end - control->unsent_start, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (sent < 0) {
			control->broken |= errno != EAGAIN;
			break;
		}
		control->unsent_start += sent;
	}
	control->stuck = control->unsent_start < control->unsent_end;
	if (!control->stuck)
		control->unsent_start = control->unsent_end = 0;
	if (control->stuck != had) {
		struct epoll_event event = { control->stuck ? EPOLLOUT : EPOLLIN, { .ptr = &control->source } };

		epoll_ctl(epoll_fd, EPOLL_CTL_MOD, control->source.fd, &event);
	}
}

/* Carries out the lines that have come, while their answers go. */
static void work(struct control *control)
{
	char *start = control->line, *end;

	while (!control->stuck && (end = memchr(start, '\n', control->line + control->length - start))) {
		*end = 0;
		carry_out(control, start);
		start = end + 1;
		send_answers(control);
	}
	control->length -= start - control->line;
	memmove(control->line, start, control->length);
}

static void receive(struct control *control)
{
	ssize_t got = recv(control->source.fd, control->line + control->length, MAX_LINE - control->length, MSG_DONTWAIT);

	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0) {
		control->broken = true;
		return;
	}
	control->length += got;
	work(control);
	if (!control->stuck && control->length == MAX_LINE) {
		answer(control, "error - a line of over %d bytes", MAX_LINE);
		send_answers(control);
		control->broken = true;
	}
}

void control_event(struct source *source)
{
	struct control *control = source->owner;

	if (control->closed)
		return;
	send_answers(control);
	work(control);
	if (!control->stuck)
		receive(control);
	if (control->broken)
		hang_up(control);
}
