// SPDX-License-Identifier: Apache-2.0
/*
 * http.c - where the daemon is, and one HTTP/1.0 request a call: the answer ends with the connection.
 *
 * SAMEWIRE_HNS_ADDRESS		host:port of the daemon's hns_listen (default 127.0.0.1:9434)
 * SAMEWIRE_HNS_TOKEN		the token, or
 * SAMEWIRE_HNS_TOKEN_FILE	a file that holds it
 *
 * What is not in the environment is looked for in samewire-hns.ini beside the library: address=, token=, token_file=.
 */
#include "http.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef _WIN32
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#endif

#define DEFAULT_ADDRESS "127.0.0.1:9434"
#define TIMEOUT_S 120
#define MAX_ANSWER (256u << 20)

/* The value of `key=` in the settings file, to be freed. */
static char *from_settings(const char *key)
{
	char *text = settings_beside(), *line = text, *found = NULL;
	size_t length = strlen(key);

	while (line && *line && !found) {
		size_t n = strcspn(line, "\r\n");

		if (n > length && !strncmp(line, key, length) && line[length] == '=') {
			found = malloc(n - length);
			if (found) {
				memcpy(found, line + length + 1, n - length - 1);
				found[n - length - 1] = 0;
			}
		}
		line += n;
		line += strspn(line, "\r\n");
	}
	free(text);
	return found;
}

static char *setting(const char *variable, const char *key)
{
	char *value = environment(variable);

	return value ? value : from_settings(key);
}

static char *token(void)
{
	char *value = setting("SAMEWIRE_HNS_TOKEN", "token"), *file;

	if (!value && (file = setting("SAMEWIRE_HNS_TOKEN_FILE", "token_file"))) {
		value = file_text(file);
		free(file);
	}
	if (value)
		value[strcspn(value, " \t\r\n")] = 0;
	return value;
}

static void fail(struct answer *answer, const char *format, ...)
{
	va_list arguments;
	char text[512];

	va_start(arguments, format);
	vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	answer->status = 0;
	answer->body = malloc(strlen(text) + 1);
	if (answer->body)
		strcpy(answer->body, text);
	answer->size = strlen(text);
}

static socket_t connected(struct answer *answer)
{
	char *address = setting("SAMEWIRE_HNS_ADDRESS", "address");
	char host[128] = "";
	const char *text = address ? address : DEFAULT_ADDRESS, *colon = strrchr(text, ':');
	int port = colon ? atoi(colon + 1) : 0;
	struct sockaddr_in v4 = { .sin_family = AF_INET };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6 };
	socket_t s = NO_SOCKET;

	if (colon && (size_t)(colon - text) < sizeof(host)) {
		size_t skip = text[0] == '[';

		memcpy(host, text + skip, (size_t)(colon - text) - 2 * skip);
	}
	v4.sin_port = v6.sin6_port = htons((uint16_t)port);
	if (port < 1 || port > 65535 || sockets_ready()) {
		fail(answer, "SAMEWIRE_HNS_ADDRESS: %s is not host:port", text);
	} else if (inet_pton(AF_INET, host, &v4.sin_addr) == 1) {
		s = socket(AF_INET, SOCK_STREAM, 0);
		if (s != NO_SOCKET && connect(s, (struct sockaddr *)&v4, sizeof(v4))) {
			socket_close(s);
			s = NO_SOCKET;
		}
	} else if (inet_pton(AF_INET6, host, &v6.sin6_addr) == 1) {
		s = socket(AF_INET6, SOCK_STREAM, 0);
		if (s != NO_SOCKET && connect(s, (struct sockaddr *)&v6, sizeof(v6))) {
			socket_close(s);
			s = NO_SOCKET;
		}
	} else {
		fail(answer, "SAMEWIRE_HNS_ADDRESS: %s is no address", host);
	}
	if (s == NO_SOCKET && !answer->body)
		fail(answer, "the samewire daemon does not answer at %s", text);
	free(address);
	return s;
}

static int send_all(socket_t s, const char *data, size_t size)
{
	while (size) {
		int n = (int)send(s, data, size > 1 << 20 ? 1 << 20 : (int)size, 0);

		if (n <= 0)
			return -1;
		data += n;
		size -= (size_t)n;
	}
	return 0;
}

/* The path with everything encoded that has no place in a request line. */
static char *encoded(const char *path)
{
	char *result = malloc(3 * strlen(path) + 1), *to = result;

	for (; result && *path; path++) {
		unsigned char c = (unsigned char)*path;

		if (c <= 0x20 || c >= 0x7f || c == '#' || c == '\\' || c == '"')
			to += sprintf(to, "%%%02X", c);
		else
			*to++ = (char)c;
	}
	if (result)
		*to = 0;
	return result;
}

static int send_request(socket_t s, const char *method, const char *path, const char *body)
{
	char *secret = token(), *target = encoded(path), *head = NULL;
	size_t length = body ? strlen(body) : 0, room;
	int result = -1;

	if (target) {
		room = strlen(method) + strlen(target) + (secret ? strlen(secret) : 0) + 200;
		head = malloc(room);
	}
	if (head) {
		snprintf(head, room,
			 "%s %s HTTP/1.0\r\nHost: samewire\r\nAuthorization: Bearer %s\r\n"
			 "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n",
			 method, target, secret ? secret : "", length);
		result = send_all(s, head, strlen(head)) || send_all(s, body ? body : "", length) ? -1 : 0;
	}
	free(head);
	free(target);
	free(secret);
	return result;
}

/* All until the connection ends. */
static char *read_all(socket_t s, size_t *size)
{
	size_t room = 1 << 14;
	char *data = malloc(room);
	int n;

	*size = 0;
	while (data) {
		if (*size + 1 == room) {
			char *more = room < MAX_ANSWER ? realloc(data, room *= 2) : NULL;

			if (!more)
				break;
			data = more;
		}
		n = (int)recv(s, data + *size, (int)(room - *size - 1), 0);
		if (n < 0)
			break;
		if (!n) {
			data[*size] = 0;
			return data;
		}
		*size += (size_t)n;
	}
	free(data);
	return NULL;
}

void http_call(const char *method, const char *path, const char *body, struct answer *answer)
{
	char *data = NULL, *blank = NULL;
	size_t size = 0;
	socket_t s;

	memset(answer, 0, sizeof(*answer));
	s = connected(answer);
	if (s == NO_SOCKET)
		return;
	socket_timeout(s, TIMEOUT_S);
	if (!send_request(s, method, path, body))
		data = read_all(s, &size);
	socket_close(s);
	if (data && sscanf(data, "HTTP/%*d.%*d %d", &answer->status) == 1)
		blank = strstr(data, "\r\n\r\n");
	if (!blank) {
		free(data);
		fail(answer, "the samewire daemon hung up, or took over %d s, at %s %s", TIMEOUT_S, method, path);
		return;
	}
	blank += 4;
	answer->size = size - (size_t)(blank - data);
	memmove(data, blank, answer->size + 1);
	answer->body = data;
}

void answer_free(struct answer *answer)
{
	free(answer->body);
	answer->body = NULL;
}

socket_t http_stream(const char *path)
{
	struct answer unused = { 0 };
	socket_t s = connected(&unused);

	answer_free(&unused);
	if (s != NO_SOCKET)
		socket_timeout(s, TIMEOUT_S);
	if (s != NO_SOCKET && send_request(s, "GET", path, NULL)) {
		socket_close(s);
		s = NO_SOCKET;
	}
	return s;
}

char *lines_next(struct lines *lines)
{
	for (;;) {
		char *line = lines->buffer + lines->start, *end;
		int n;

		end = lines->buffer ? memchr(line, '\n', lines->used - lines->start) : NULL;
		if (end) {
			lines->start = (size_t)(end - lines->buffer) + 1;
			*end = 0;
			if (end > line && end[-1] == '\r')
				end[-1] = 0;
			if (lines->past_headers)
				return line;
			if (!lines->status && sscanf(line, "HTTP/%*d.%*d %d", &lines->status) != 1)
				return NULL;
			if (!*line)
				lines->past_headers = 1;
			if (lines->past_headers && lines->status != 200)
				return NULL;
			continue;
		}
		if (lines->buffer)
			memmove(lines->buffer, line, lines->used - lines->start);
		lines->used -= lines->start;
		lines->start = 0;
		if (lines->used == lines->room) {
			size_t room = lines->room ? 2 * lines->room : 1 << 14;
			char *more = realloc(lines->buffer, room);

			if (!more)
				return NULL;
			lines->buffer = more;
			lines->room = room;
		}
		n = (int)recv(lines->socket, lines->buffer + lines->used, (int)(lines->room - lines->used), 0);
		if (n <= 0)
			return NULL;
		lines->used += (size_t)n;
	}
}

void lines_free(struct lines *lines)
{
	free(lines->buffer);
	lines->buffer = NULL;
}
