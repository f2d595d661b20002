// SPDX-License-Identifier: Apache-2.0
/*
 * control.c - what the daemon says to the relay: lines on a unix socket, one answer line each.
 *
 *   put ID tcp|udp LISTEN-ADDRESS AFFINITY-SECONDS [ADDRESS|PORT|a|d]...   -> ok ID LISTENER-PORT
 *	 Makes a service, or replaces its backends: connections to those that stay go on, those to others end.
 *	 a: active, d: draining. Another address to listen on is another listener, with another port.
 *   del ID	-> ok ID 0
 *   list	-> service ID PORT tcp|udp ACCEPTED FAILED OPEN, a line each, then: end
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

#include "relay.h"

#define MAX_LINE (1 << 20)

struct control {
	struct source source;
	size_t length;
	bool closed;
	char line[MAX_LINE];
};

static struct list services = { &services, &services };

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
	int fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC);
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
	control->closed = false;
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
	/* Blocking: the daemon reads what it has asked for. It is gone when this fails; the read will tell. */
	for (int at = 0; at < length;) {
		ssize_t sent = send(control->source.fd, text + at, length - at, MSG_NOSIGNAL);

		if (sent <= 0)
			return;
		at += sent;
	}
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
static bool parse_backend(char *text, struct address *address, bool *draining)
{
	char *port = strchr(text, '|'), *state = port ? strchr(port + 1, '|') : NULL;
	unsigned long number;

	if (!state)
		return false;
	*port++ = 0;
	*state++ = 0;
	*draining = !strcmp(state, "d");
	return (*draining || !strcmp(state, "a")) && parse_number(port, 65535, &number) && number &&
	       parse_address(text, number, address);
}

static uint64_t seed_of(const struct address *address)
{
	uint64_t words[2] = { 0, 0 };

	if (address->any.sa_family == AF_INET)
		memcpy(words, &address->v4.sin_addr, sizeof(address->v4.sin_addr));
	else
		memcpy(words, &address->v6.sin6_addr, sizeof(words));
	return mix(words[0] ^ mix(words[1] ^ address->v4.sin_port));
}

static void end_users(struct service *service, struct backend *backend)
{
	while (backend->users.next != &backend->users)
		service->udp ? udp_end(backend->users.next) : tcp_end(backend->users.next);
}

static struct service *find(const char *id)
{
	for (struct list *at = services.next; at != &services; at = at->next) {
		struct service *service = OWNER(at, struct service, of_all);

		if (!strcmp(service->id, id))
			return service;
	}
	return NULL;
}

static void delete(struct service *service)
{
	for (unsigned i = 0; i < service->count; i++) {
		end_users(service, service->backends[i]);
		free_later(service->backends[i]);
	}
	free(service->backends);
	service->backends = NULL;
	affinity_forget(service);
	list_remove(&service->of_all);
	close(service->source.fd);
	service->source.fd = -1;
	free_later(service);
}

static const char *listen_on(struct service *service, const struct address *address)
{
	struct address bound = { .length = sizeof(bound.v6) };
	int error = service->udp ? udp_listen(service, address) : tcp_listen(service, address);

	if (error)
		return strerror(-error);
	if (getsockname(service->source.fd, &bound.any, &bound.length) || watch(&service->source, EPOLLIN)) {
		close(service->source.fd);
		return strerror(errno);
	}
	service->port = ntohs(bound.v4.sin_port); /* the same place in both kinds */
	return NULL;
}

static bool listens_at(const struct service *service, const struct address *address)
{
	struct address bound = { .length = sizeof(bound.v6) };

	if (getsockname(service->source.fd, &bound.any, &bound.length) || bound.length != address->length)
		return false;
	return bound.any.sa_family == AF_INET ?
		       bound.v4.sin_addr.s_addr == address->v4.sin_addr.s_addr :
		       !memcmp(&bound.v6.sin6_addr, &address->v6.sin6_addr, sizeof(bound.v6.sin6_addr));
}

/* The node's address is another one: a new listener. Connections go on; on an error the old one stays. */
static const char *move(struct service *service, const struct address *address)
{
	struct source before = service->source;
	const char *error = listen_on(service, address);

	if (error)
		service->source = before;
	else
		close(before.fd);
	return error;
}

/* Makes `backends` what the service has; the old ones that are not among them lose their users. */
static void replace(struct service *service, struct backend **backends, unsigned count)
{
	struct backend **old = service->backends;
	unsigned old_count = service->count, front = 0;

	for (unsigned i = 0; i < count; i++) { /* the active ones to the front */
		struct backend *backend = backends[i];

		if (backend->draining)
			continue;
		backends[i] = backends[front];
		backends[front++] = backend;
	}
	service->backends = backends;
	service->count = count;
	service->active = front;
	for (unsigned i = 0; i < old_count; i++) {
		if (old[i]->mentioned)
			continue;
		end_users(service, old[i]);
		free_later(old[i]);
	}
	free(old);
}

/* The backends of a put, known ones re-used. On an error nothing has changed. */
static struct backend **read_backends(struct service *service, char *text, unsigned *count, const char **error)
{
	struct backend **backends = NULL;
	unsigned room = 0, kept = 0;
	bool draining;
	char *word, *rest = text;

	*count = 0;
	*error = NULL;
	for (unsigned i = 0; i < service->count; i++)
		service->backends[i]->mentioned = false;
	while ((word = strsep(&rest, " ")) && *word) {
		struct address address;
		struct backend *backend;

		if (*count == MAX_BACKENDS || !parse_backend(word, &address, &draining)) {
			*error = *count == MAX_BACKENDS ? "too many backends" : "backend: want ADDRESS|PORT|a or d";
			break;
		}
		if (*count == room) {
			struct backend **more = realloc(backends, (room = room ? 2 * room : 8) * sizeof(*more));

			if (!more) {
				*error = strerror(ENOMEM);
				break;
			}
			backends = more;
		}
		backend = backend_find(service, &address);
		if (backend && backend->mentioned)
			continue; /* named twice */
		if (!backend) {
			backend = calloc(1, sizeof(*backend));
			if (!backend) {
				*error = strerror(ENOMEM);
				break;
			}
			backend->address = address;
			backend->seed = seed_of(&address);
			list_init(&backend->users);
		} else {
			kept++;
		}
		backend->mentioned = true;
		backend->draining = draining;
		backends[(*count)++] = backend;
	}
	if (!*error)
		return backends;
	for (unsigned i = 0; i < *count; i++)
		if (!backend_find(service, &backends[i]->address))
			free(backends[i]);
	free(backends);
	return NULL;
}

static void put(struct control *control, char *rest)
{
	char *id = strsep(&rest, " "), *protocol = strsep(&rest, " "), *listen = strsep(&rest, " ");
	char *affinity = strsep(&rest, " ");
	unsigned long affinity_s;
	struct service *service, *old;
	struct backend **backends;
	struct address address;
	const char *error;
	unsigned count;

	if (!id || !*id || strlen(id) >= ID_BYTES) {
		answer(control, "error - put: want an id of 1 to %d bytes", ID_BYTES - 1);
		return;
	}
	if (!protocol || (strcmp(protocol, "tcp") && strcmp(protocol, "udp")) || !listen ||
	    !parse_address(listen, 0, &address) || !parse_number(affinity, 86400, &affinity_s)) {
		answer(control, "error %s want tcp|udp, an address to listen on, affinity seconds up to 86400", id);
		return;
	}
	old = find(id);
	service = old ? old : calloc(1, sizeof(*service));
	if (!service) {
		answer(control, "error %s %s", id, strerror(ENOMEM));
		return;
	}
	backends = read_backends(service, rest ? rest : "", &count, &error);
	if (!error && !old) {
		service->udp = !strcmp(protocol, "udp");
		strcpy(service->id, id);
		error = listen_on(service, &address);
		if (error) {
			for (unsigned i = 0; i < count; i++)
				free(backends[i]);
			free(backends);
		} else {
			list_add(&services, &service->of_all);
		}
	} else if (!error && !listens_at(service, &address)) {
		error = move(service, &address);
		if (error) { /* what is new is nobody's; what was there stays */
			for (unsigned i = 0; i < count; i++)
				if (!backend_find(service, &backends[i]->address))
					free(backends[i]);
			free(backends);
		}
	}
	if (error) {
		answer(control, "error %s %s", id, error);
		if (!old)
			free(service);
		return;
	}
	service->affinity_ms = affinity_s * 1000;
	replace(service, backends, count);
	answer(control, "ok %s %u", id, service->port);
}

static void list(struct control *control)
{
	for (struct list *at = services.next; at != &services; at = at->next) {
		struct service *s = OWNER(at, struct service, of_all);

		answer(control, "service %s %u %s %llu %llu %u", s->id, s->port, s->udp ? "udp" : "tcp",
		       (unsigned long long)s->accepted, (unsigned long long)s->failed, s->open);
	}
	answer(control, "end");
}

static void carry_out(struct control *control, char *line)
{
	char *rest = line, *verb = strsep(&rest, " ");
	struct service *service;

	if (!strcmp(verb, "put")) {
		put(control, rest);
	} else if (!strcmp(verb, "del") && rest) {
		service = find(rest);
		if (service)
			delete(service);
		answer(control, "ok %s 0", strlen(rest) < ID_BYTES ? rest : "-");
	} else if (!strcmp(verb, "list")) {
		list(control);
	} else if (!strcmp(verb, "stats")) {
		answer(control, "stats %llu %llu %llu %llu %llu", (unsigned long long)counters.accepted,
		       (unsigned long long)counters.failed, (unsigned long long)counters.refused,
		       (unsigned long long)counters.datagrams, (unsigned long long)counters.datagrams_lost);
	} else if (!strcmp(verb, "quit")) {
		exit(0);
	} else {
		answer(control, "error - want put, del, list, stats or quit");
	}
}

static void hang_up(struct control *control)
{
	close(control->source.fd);
	control->closed = true;
	free_later(control);
}

void control_event(struct source *source)
{
	struct control *control = source->owner;
	char *start = control->line, *end;
	ssize_t got;

	if (control->closed)
		return;
	got = recv(source->fd, control->line + control->length, MAX_LINE - control->length, MSG_DONTWAIT);
	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0) {
		hang_up(control);
		return;
	}
	control->length += got;
	while ((end = memchr(start, '\n', control->line + control->length - start))) {
		*end = 0;
		carry_out(control, start);
		start = end + 1;
	}
	control->length -= start - control->line;
	memmove(control->line, start, control->length);
	if (control->length == MAX_LINE) {
		answer(control, "error - a line of over %d bytes", MAX_LINE);
		hang_up(control);
	}
}
